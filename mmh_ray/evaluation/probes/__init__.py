"""Networks and regressions trained anew to ask what an image still tells: site, age, tissue."""
