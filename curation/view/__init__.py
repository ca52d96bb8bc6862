"""A page to look at a run with: a server for this machine alone, and what it reads from a run directory.

`catalogue` has a row for each line of the ledger, `pictures` finds their bytes, `api` answers the page's questions,
`server` says who may ask. The page itself is in `page/`: it loads nothing from anywhere else.
"""
