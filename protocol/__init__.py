"""The protocols (IDP, MIKE) and the IPsec layer under them; knows nothing of emulated networks."""
