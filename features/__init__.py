"""Tables become windows become feature tables; pure and stateless."""
