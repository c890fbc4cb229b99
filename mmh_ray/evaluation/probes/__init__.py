"""Networks and regressions that predict site, age or tissue from images, trained separately for each method."""
