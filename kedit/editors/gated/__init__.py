"""Memories that act inside a pass: store x gate x effect (DESIGN §11). GRACE, MELO, WISE and SERAC are yamls over it."""
