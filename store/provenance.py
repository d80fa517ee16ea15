"""Names of the provenance file beside a manifest: how, when and by whom a cache was made; not part of its key."""

PROVENANCE_FILE = "provenance.json"
CARD_DIGEST = "card_sha256"
"""Field of the provenance that holds the SHA-256 of the card, in hex."""
