"""A whole small world on one machine around the real agent: a cluster API, AWS, pods in network namespaces."""
