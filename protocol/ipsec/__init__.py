"""IPsec as plain data (RFC 4301, RFC 4303, RFC 5374): SAs, policies, key schedule, backends."""
