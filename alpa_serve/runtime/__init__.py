"""The serving runtime on Ray: what runs behind :mod:`alpa_serve.controller` and :mod:`alpa_serve.run`.

Data flows one way: a socket (``http``) hands a :class:`~alpa_serve.runtime.request.ServeRequest` to the router, which
places it on a group by the code that the simulators run (:mod:`alpa_serve.scheduling`); the group's manager has its
replica (``models``) answer. The controller says which groups and replicas there are; no HTTP request passes it.
"""
