"""Which plan: candidates rated, chosen under limits, tried as whole networks, confirmed by the clock.

`rating` weighs every candidate of every site, `problem` and `knapsack` choose under a `budget`, `trial` fits whole
plans and lets held-back images decide, `confirmation` times them, `sweep` walks the whole trade-off.
"""
