"""Before and after: size, cost, nearness and speed, as tables, a sentence and one page.

`report` holds the figures of a conversion and `bundle` those of its files; `sentence`, `charts` and `page` show them.
"""
