"""Tables: of any runs (`plain`), and in a paper's layout beside its own numbers (`show`). Computed from rows alone.

A paper's table is a `layout` (what stands where), `entries` (ours, the paper's, the difference), a `ranking` (best and
second best), `captions`, what would `fill` an empty place, put together in `views` and written by `formats` and `page`.
"""
