"""What a worker of each training stage does: read its job, build data and model, run the loop, save.

A job is plain JSON, so that it can travel to any machine. Rank 0 writes into the job's folder `out`:
`model.safetensors` with `model.json`, and `result.json` with the figures of the tables.
"""
