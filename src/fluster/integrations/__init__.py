"""Other libraries on Fluster; each module needs the library it is named after."""
