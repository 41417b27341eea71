"""The service of this environment's settings: bentoml serve serving.online.service:Classifier"""

from serving.online.app import create_service
from serving.settings import load_settings

Classifier = create_service(load_settings())
