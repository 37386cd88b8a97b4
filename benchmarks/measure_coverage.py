"""Measure by simulation how often the report's intervals contain the truth, in minutes of one core.

python benchmarks/measure_coverage.py    writes benchmarks/reporting/coverage.csv, which report.py quotes
"""

from files import write_text
from reporting import coverage, intervals

if __name__ == "__main__":
    write_text(intervals.COVERAGE, coverage.measure_all().to_csv(index=False, lineterminator="\n"))
