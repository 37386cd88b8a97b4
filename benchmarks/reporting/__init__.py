"""From run files to tables and figures: `runs.py` reads and scores, `tables.py` makes the cells, `figures.py` draws.

May import `ld_agents`, never a command.
"""
