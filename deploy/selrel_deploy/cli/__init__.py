"""Commands of `selrel` that this package brings, one file each; ``selrel_zennit.cli`` names them."""
