"""The cluster side: watches this node's pods and the namespaces, tells the cluster what went wrong."""
