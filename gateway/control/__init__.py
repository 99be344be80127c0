"""The control plane: admin API, tenants, keys, plans and the policy snapshot."""
