"""From run files to tables and figures."""
