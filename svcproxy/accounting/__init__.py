"""Connections and refusals per Service.

``connections`` reads connection tracking when it is asked, in every mode and at no cost otherwise.
"""
