"""Code that cannot be traced, read and never run.

Files, in the order in which data flows: `source`, `registries`, `values`, `settings`,
`call_sites`, `follower`, `method_names`, `reader`, `reach`.
"""
