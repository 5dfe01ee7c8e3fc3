"""Which workload is this job?"""
