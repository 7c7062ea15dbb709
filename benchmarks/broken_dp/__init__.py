"""Planted bugs of private training, and whether guards, ledger or an audit find each of them."""
