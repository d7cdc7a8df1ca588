"""The whole autoscaling loop on paper: streams, Serve's replicas, Ray's pods, Kubernetes' nodes.

    cuvee simulate blend.yaml --streams 20:200 --load 60     # proposes settings for that

The decision is the deployed one (`deployments.scaling.decide`); everything around it is a fluid
model in steps of a second, without chance, so the same question has the same answer.
"""
