"""Which plan: candidates scored, chosen under a goal, tried as whole networks, confirmed by measurement.

`goal` is what a user asks for, `study` the context of one call, `scores` what each candidate would lose, `problem` and
`knapsack` the choice under limits, `trial` one plan that was tried, `search` the loop that proposes, tries and narrows,
`clock` the timing of whole networks, `outlook` what a larger tolerance would allow, and
`sweep` the whole trade-off.
"""
