"""One self-contained HTML page from records. It reads, picks, orders and formats; it computes no statistics.

>>> from pinchpoint.report.study.page import write  # write(summary, runs, Path("report.html"))
"""
