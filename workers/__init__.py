"""What runs on the machines that compute: thin Celery tasks around child processes.

run_job   claim, inputs, child, relay, result     one file each: keeper, folders, inputs, spawn, relay, publish
serve     the node agent, which keeps engines
child     the inside of a job's process: moe_core and nothing of the platform
"""
