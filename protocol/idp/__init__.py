"""IDP, the IPsec discovery protocol: who is there, who left, the SAs that follow (docs/idp.md)."""
