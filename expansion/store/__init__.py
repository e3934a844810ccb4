"""An expanded set on disk: images or tars, and the manifests that vouch for them."""
