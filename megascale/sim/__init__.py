"""The simulator: a virtual cluster around the same core that drives a real job.

    world       a whole simulated job: cluster, network, storage, and a succession of drivers
    trial       one seed of a hostile environment; `explore` runs many and checks every invariant
    campaign    a scenario of weeks on thousands of nodes, by event; `detailed` measures the detectors
    scenario    scenarios as data, with the sources of their figures

Time is virtual and every random number comes from a seed, so a run repeats exactly.
"""
