"""The report of an audit, from ``records.AuditReport`` alone: a page, Markdown, and figures for papers.

>>> from pinchpoint.report.audit import page  # page.write(report, Path("report.html"))
"""
