"""HTTP concerns that apply to every route: authentication, body limits, rate limits, CORS, problem documents."""
