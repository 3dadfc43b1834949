// Small repairs of the theme, for those who read by keyboard or screen reader.
