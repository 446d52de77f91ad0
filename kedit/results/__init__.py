"""What has run, read back: `cells`, one a directory; `samples` of case values; `measured` numbers with intervals."""
