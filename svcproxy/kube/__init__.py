"""Where API objects come from: the Kubernetes API or a folder of manifests."""
