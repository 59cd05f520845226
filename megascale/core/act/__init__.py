"""Commands on the state: assemble, launch, stop, recover, exclude and replace nodes, suspend, finish.

They change the job record and emit effects; what to do is asked of `decide`.
"""
