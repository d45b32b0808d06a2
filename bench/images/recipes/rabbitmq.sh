# RabbitMQ on Erlang, without the plugins that must be asked for.
