"""Before and after: size, cost, fidelity, as tables, text and one page.

`rows` holds the values and their tables, `sentence`, `charts` and `page` say them, `report` is what users get. What a
recovery did (`recovery`) lives here as a value, so that reports need not know the rooms below.
"""
