"""A sweep's page: one file that shows its tables, pictures, answers and cells in a browser, and needs nothing else."""
