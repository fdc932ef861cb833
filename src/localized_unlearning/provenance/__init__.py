"""Where every number came from: digests, records and the audit."""
