"""Black-box measurements: starts processes by their commands, speaks over the network, imports nothing of ours."""
