# Nothing: what starting and ending costs.
