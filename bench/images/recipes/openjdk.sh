# Tomcat on OpenJDK's headless runtime, with Debian's default page.
