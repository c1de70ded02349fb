"""What tests of code that runs on Fluster can use: shipped, for users too."""
