"""The kernel: pods' traffic for the metadata addresses is led to this agent, and kept so."""
