"""Edges: parties outside the cluster, which call the service and are never called.

Pure: no Ray, no ML framework. `protocol` declares every call between an edge and the
service's door, `registry` holds who is invited and enrolled.
"""
