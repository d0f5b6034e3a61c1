"""The functional core of IPVS mode: computes plans from Service ports."""
