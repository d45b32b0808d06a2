# redis as Debian packages it; nothing is added.
