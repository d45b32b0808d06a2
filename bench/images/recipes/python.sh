# A small web application under gunicorn that imports what such applications do.
service_files() {
  mkdir -p "$1/srv/app"
  cat >"$1/srv/app/app.py" <<'CODE'
"""Answers every request with the versions of what it has imported."""
import cryptography.fernet
import dateutil.parser
import flask
import jinja2
import lxml.etree
import numpy
import PIL.Image
import psycopg2
import redis
import requests
import sqlalchemy.orm
import yaml

app = flask.Flask(__name__)


@app.route("/")
def versions():
    modules = [numpy, requests, sqlalchemy, yaml, jinja2, lxml.etree, PIL, psycopg2, redis, dateutil]
    return {module.__name__: getattr(module, "__version__", "") for module in modules}
CODE
}
