"""No secret gets into a configuration, nor into what is said about one that has one."""

import traceback

import pytest

from core.config import PlaceSettings, RunConfig, parse_config
from core.errors import ConfigError
from core.expert.settings import ExpertSettings
from tasks.workplace import Workplace

SECRET = "Hunter2/s3cr3t"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql://u:{SECRET}@h/db",
        f"postgresql+psycopg://u:{SECRET}@h:5432/db?sslmode=require",
        f"postgresql:///db?host=h&password={SECRET}",
        f"postgresql:///db?options=-c&pass%77ord={SECRET}",
        f"host=h dbname=db password = {SECRET}",
        f"u:{SECRET}@h/db",
    ],
)
def test_a_password_in_the_database_address_is_refused_and_not_repeated(url):
    refused(lambda: PlaceSettings(database=url), "place.database", "PGPASSWORD", "pgpass")
    refused(lambda: parse_config({"place": {"database": url}}, "my.toml"), "place.database", "PGPASSWORD")
    refused(lambda: Workplace(home="/x", store_uri="/x", database_url=url), "database_url", "PGPASSWORD")


@pytest.mark.parametrize(
    "url",
    ["", "sqlite:////home/me@work/a:b/state.db", "postgresql://u@h:5432/db?sslmode=require", "postgresql:///db"],
)
def test_a_database_address_without_a_password_is_kept_as_it_is(url):
    assert PlaceSettings(database=url).database == url
    assert url in Workplace(home="/x", store_uri="/x", database_url=url).model_dump_json()


ADDRESSES = [
    f"https://user:{SECRET}@host/v1",
    f"https://{SECRET}@host/v1",
    f"user:{SECRET}@host/v1",
    f"https://host/v1?api-key={SECRET}",
    f"https://host/v1#{SECRET}",
]


@pytest.mark.parametrize("url", ADDRESSES)
def test_a_secret_in_the_experts_address_is_refused_and_not_repeated(url):
    refused(lambda: ExpertSettings(base_url=url), "expert.base_url", "expert.api_key_env")
    refused(lambda: parse_config({"expert": {"base_url": url}}, "my.toml"), "expert.base_url", "expert.api_key_env")


@pytest.mark.parametrize("url", ADDRESSES)
@pytest.mark.parametrize(
    ("key", "instead"),
    [
        ("prefect_url", "PREFECT_API_AUTH_STRING"),
        ("mlflow_url", "MLFLOW_TRACKING_PASSWORD"),
        ("s3_endpoint", "AWS_SECRET_ACCESS_KEY"),
    ],
)
def test_a_secret_in_the_address_of_a_service_is_refused_and_not_repeated(url, key, instead):
    refused(lambda: parse_config({"place": {key: url}}, "my.toml"), f"place.{key}", instead)


def test_a_secret_in_the_address_of_a_bucket_is_refused_but_a_folder_may_be_called_anything():
    refused(lambda: PlaceSettings(store=f"s3://key:{SECRET}@bucket/prefix"), "place.store", "AWS_SECRET_ACCESS_KEY")
    for folder in ("/data/me@work/#1", "file:///data/me@work/#1"):
        assert PlaceSettings(store=folder).store == folder


@pytest.mark.parametrize(
    "key",
    [
        "sk-very-secret-123",
        "hf_abcdefghijABCDEFGHIJklmnopqrst",
        "gsk_a1b2c3d4e5f6g7h8i9j0",
        "f0e1d2c3b4a5968778695a4b3c2d1e0f",
        "AIzaSyA1234567890abcdef",
        "MY KEY",
        "1KEY",
        "KEY\n",
    ],
)
def test_a_key_in_place_of_a_variables_name_is_refused_and_not_repeated(key):
    refused(lambda: ExpertSettings(api_key_env=key), "expert.api_key_env", "never the key itself", secret=key)


@pytest.mark.parametrize("name", ["", "OPENAI_API_KEY", "_key2", "AZURE_OPENAI_API_KEY_EUROPE_2", "HF_TOKEN"])
def test_names_of_variables_are_kept(name):
    assert ExpertSettings(api_key_env=name).api_key_env == name


@pytest.mark.parametrize(
    "values",
    [
        {"expert": {"api_key": SECRET}},
        {"expert": {"api_key_env": [SECRET]}},
        {"place": {"database": [SECRET]}},
        {"place": SECRET},
        {"expert": {"timeout_s": SECRET}},
    ],
)
def test_whatever_is_wrong_with_a_configuration_no_value_of_it_is_repeated(values):
    refused(lambda: parse_config(values, "my.toml"), "my.toml")


def test_a_configuration_that_was_stored_with_a_secret_is_refused_too():
    text = RunConfig().model_dump_json().replace('"database":""', f'"database":"postgresql://u:{SECRET}@h/db"')
    assert SECRET in text
    refused(lambda: RunConfig.model_validate_json(text), "place.database")


def refused(make, *mentioned, secret=SECRET):
    with pytest.raises(ConfigError) as caught:
        make()
    assert all(words in str(caught.value) for words in mentioned)
    assert secret not in "".join(traceback.format_exception(caught.value, limit=0))
