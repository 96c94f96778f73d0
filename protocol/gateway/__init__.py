"""IDP security gateways: partitions with groups of their own, joined at the border."""
