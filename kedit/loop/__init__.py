"""The loop: edit, test, restore, write; the order of its steps, what it leaves on disk, and experiment tracking."""
